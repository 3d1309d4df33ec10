"""Measuring a built pipeline: pictures, times, what ran, memory, and quality against a reference."""
