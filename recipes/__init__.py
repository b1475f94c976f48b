if __name__ == "recipes":
    raise ImportError("import lockstitch.recipes: the folders at the top of the repository are parts of one package")
