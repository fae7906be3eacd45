"""Real-time deepfake detection: video chunks in, rolling fake scores out."""
