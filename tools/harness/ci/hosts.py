"""The ComfyUI releases to test on: packed ones unpacked into a cache, and those that lie on the machine."""

import tarfile
from pathlib import Path

from ..find import find_host, host_version, is_host

Version = tuple[int, ...]


def collect(archives: Path, cache: Path) -> dict[Version, Path]:
    """Every host by its version, oldest first.

    Args:
        archives: folder with ``ComfyUI-*.tar.xz``; it may be missing.
        cache: folder to unpack them into. A host there goes before one of the same version elsewhere.
    """
    for archive in sorted(archives.glob("ComfyUI-*.tar.xz")):
        unpack(archive, cache)
    here = find_host()
    elsewhere = [here, *here.parent.glob("ComfyUI-*")] if here else []
    folders = [*elsewhere, *cache.glob("ComfyUI-*")]
    found = {host_version(folder): folder.resolve() for folder in folders if is_host(folder)}
    return dict(sorted(found.items()))


def unpack(archive: Path, cache: Path) -> None:
    """Unpack a host, or what is missing of it or broken off; a mark beside it says that it is whole."""
    cache.mkdir(parents=True, exist_ok=True)
    name = archive.name.removesuffix(".tar.xz")
    mark, content = cache / f"{name}.complete", str(archive.stat().st_size)
    if mark.is_file() and mark.read_text() == content and is_host(cache / name):
        return
    print(f"unpacking {archive.name} into {cache}", flush=True)
    with tarfile.open(archive) as packed:
        for member in packed:
            place = cache / member.name
            if not member.isfile() or not place.is_file() or place.stat().st_size != member.size:
                packed.extract(member, cache, filter="data")
    mark.write_text(content)
