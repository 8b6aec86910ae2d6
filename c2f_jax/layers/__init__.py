"""What every backbone is made of, fast on each platform: convolutions and norms."""
