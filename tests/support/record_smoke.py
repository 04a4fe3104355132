"""Records what the smoke cases should be: their pictures, and the digests of this platform.

python tests/record_smoke.py            # this platform's digests, where the pictures are as they were
python tests/record_smoke.py --pictures # the pictures too: after a change that was meant to change them
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from diffuse.config.compose import compose_config
from diffuse.smoke import cases, reference, suite


def main() -> None:
    digests = json.loads((reference.FOLDER / reference.DIGESTS).read_text(encoding="utf-8"))
    anew = "--pictures" in sys.argv[1:]
    if anew:
        digests.clear()  # those of other platforms were of the pictures that go now
        for path in reference.FOLDER.glob("*.png"):
            path.unlink()
    with tempfile.TemporaryDirectory() as folder:
        cfg = compose_config(["experiment=smoke", f"output.dir={folder}/out"])
        inputs = suite.write_inputs(Path(folder))
        for case in cases.cases():
            made = suite.make(case, cfg, (), inputs)
            faults = suite.picture_faults(made, case) + suite.record_faults(made)
            assert not faults, (case.name, faults)
            key = reference.key(made.record)
            digests.setdefault(key, {})[case.slug] = [image["pixels_sha256"] for image in made.record["images"]]
            if anew:
                for path, picture in zip(reference.files(case.slug, len(made.images)), made.images, strict=True):
                    picture.save(path, optimize=True)
            else:
                print(f"{case.name}: {reference.compare(case.slug, made)}")
    content = json.dumps(digests, indent=1, sort_keys=True)
    (reference.FOLDER / reference.DIGESTS).write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
