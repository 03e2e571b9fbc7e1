"""Data sets, preprocessing, augmentation and batching."""
