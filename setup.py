"""Puts the folders that lie beside the rooms in a checkout inside them in a wheel; all else is in pyproject.toml."""

from pathlib import Path

from setuptools import find_namespace_packages, setup

rooms = ["vbatch_site", "files", "batches", "workers"]
moved = {"vbatch_site.templates": "templates", "workers.recipes": "recipes"}
below = {
    f"{package}.{part}": f"{folder}/{part}".replace(".", "/")
    for package, folder in moved.items()
    for part in find_namespace_packages(folder)
}

setup(
    packages=[
        *find_namespace_packages(
            include=[f"{room}*" for room in rooms], exclude=["*.tests", "*.tests.*", "*.static", "*.static.*"]
        ),
        *moved,
        *below,
    ],
    package_dir={**moved, **{name: str(Path(path)) for name, path in below.items()}},
    package_data={
        "": ["py.typed"],
        "vbatch_site": ["static/**"],
        "vbatch_site.templates": ["*.html"],
        "workers.recipes": ["*.yaml"],
        **{name: ["*.html", "*.yaml", "*.txt", "*.js", "*.css", "*.svg"] for name in below},
    },
)
