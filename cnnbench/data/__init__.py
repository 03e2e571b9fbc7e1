"""Data: from files and archives to augmented batches."""
