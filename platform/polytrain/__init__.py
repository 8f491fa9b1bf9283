"""polytrain: co-trains one vision transformer on images, videos and sounds."""

__version__ = "0.1.0"
