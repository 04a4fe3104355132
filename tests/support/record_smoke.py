"""Records the reference of the smoke cases: their pictures, and the digests of this platform.

python tests/support/record_smoke.py            # pictures that are missing, as a new sampler's is; and the digests
python tests/support/record_smoke.py --pictures # all pictures anew: after a change that was meant to change them
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from PIL import Image

from diffuse.config.compose import compose_config
from diffuse.media.pixels import frame_strip
from diffuse.smoke import cases, reference, suite


def main() -> None:
    digests = json.loads((reference.FOLDER / reference.DIGESTS).read_text(encoding="utf-8"))
    if "--pictures" in sys.argv[1:]:
        digests.clear()  # those of other platforms were of the pictures that go now
        for path in reference.FOLDER.glob("*.png"):
            path.unlink()
    with tempfile.TemporaryDirectory() as folder:
        cfg = compose_config(["experiment=smoke", f"output.dir={folder}/out"])
        inputs = suite.write_inputs(Path(folder))
        for case in cases.cases():
            generation = suite.run_case(case, cfg, (), inputs)
            faults = suite.picture_faults(generation, case) + suite.record_faults(generation)
            assert not faults, (case.name, faults)
            key = reference.platform_key(generation.record)
            digests.setdefault(key, {})[case.slug] = reference.recorded_digests(generation.record)
            paths = reference.reference_files(case.slug, len(generation.frames))
            if all(path.is_file() for path in paths):
                print(f"{case.name}: {reference.compare_with_reference(case.slug, generation)}")
            else:
                for path, frames in zip(paths, generation.frames, strict=True):
                    Image.fromarray(frame_strip(frames)).save(path, optimize=True)
                print(f"{case.name}: recorded")
    content = json.dumps(digests, indent=1, sort_keys=True)
    (reference.FOLDER / reference.DIGESTS).write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
