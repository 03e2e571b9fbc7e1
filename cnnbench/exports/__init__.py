"""Export of trained networks to other runtimes, and verification of each artifact."""
