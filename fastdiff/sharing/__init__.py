"""What `python -m fastdiff recipe ...` does with a shared file."""
