"""Score a video file from Python: `python examples/score_file.py clip.mp4 [config.toml]`."""

import sys

from streamer import Detector

path, *config = sys.argv[1:]
with Detector(*config) as detector:
    result = detector.score_file(path)
    if not result.trained:
        print("untrained members: no score")
    elif result.fake_score is None:
        print(f"no face in {result.frames} frames: no score")
    else:
        print(f"fake score {result.fake_score:.3f} from {result.faces} faces in {result.frames} frames")
        for track in result.tracks:
            print(f"person {track.track}: {track.fake_score:.3f} from {track.faces} faces")
