"""Benchmarks: throughput, latency, memory, profiles and tuned settings."""
