"""The operating system: files, processes, signals, measurements and the environment."""
