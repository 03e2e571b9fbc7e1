"""Making a network smaller and faster."""
