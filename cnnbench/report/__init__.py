"""Output for people: tables, plots, descriptions and progress in the terminal."""
