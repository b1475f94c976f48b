if __name__ == "stitching":
    raise ImportError("import lockstitch.stitching: the folders at the top of the repository are parts of one package")
