"""`python -m streamer`."""

from streamer.cli import main

if __name__ == "__main__":
    main()
