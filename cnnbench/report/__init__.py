"""What people read: tables, plots, descriptions and progress on a terminal."""
