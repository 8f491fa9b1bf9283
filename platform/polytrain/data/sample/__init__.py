"""What the sample suite's media look and sound like, and the files they become."""
