if __name__ == "sampling":
    raise ImportError("import lockstitch.sampling: the folders at the top of the repository are parts of one package")
