if __name__ == "rl":
    raise ImportError("import lockstitch.rl: the folders at the top of the repository are parts of one package")
