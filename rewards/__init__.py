if __name__ == "rewards":
    raise ImportError("import lockstitch.rewards: the folders at the top of the repository are parts of one package")
