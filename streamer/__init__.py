"""Real-time deepfake detection: video chunks in, rolling fake scores out."""

__version__ = "0.1.0"
