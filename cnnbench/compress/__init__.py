"""Networks made smaller after or while they learn."""
