"""Which files below a folder are photos, and what else lies there.

What other programs leave among photos (thumbnails, recycle bins, snapshots) is a closed
list, compared without regard to case. What is in none of its rows is read: a folder
called "thumbnails" or "previews" may be all that somebody has.
"""

import collections
import os
import pathlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from unsup3d_jax.data import images

# What this program writes: a folder that holds all names of a line is no place of
# photos. A run whose own pictures joined its data could not be resumed.
_OUTPUTS = (
    {"config.json", "checkpoints"},  # a run
    {"report.json", "train.png"},  # mode data
    {"factors.npz"},  # a photo's folder of mode reconstruct
    {"table.json", "rows"},  # mode tables
)
_FOLDERS = (
    # Network storage: Synology, QNAP, Asustor; snapshots of NetApp and others.
    "@eaDir", "#recycle", "#snapshot", "@tmp", "@sharesnap", "@sharebin",
    "@SynoResource", "@SynoEAStream", ".@__thumb", "@__thumb", "@Recycle",
    "@Recently-Snapshot", "@Transcode", ".streams", ".snapshot", ".snapshots",
    "~snapshot", ".zfs", ".wdmc", ".wd_tv", "Network Trash Folder", ".qsync_sn",
    # Systems' own: Windows, macOS, Linux, Android.
    "$RECYCLE.BIN", "RECYCLER", "System Volume Information", "FOUND.000",
    "__MACOSX", ".AppleDouble", ".TemporaryItems", "Temporary Items", ".fseventsd",
    ".Spotlight-V100", ".DocumentRevisions-V100", "lost+found", ".thumbnails",
    # Synchronisation: Syncthing, Resilio, GoodSync, Dropbox, Drive, Nextcloud.
    ".stversions", ".stfolder", ".sync", "_gsdata_", ".dropbox.cache",
    ".tmp.drivedownload", ".tmp.driveupload", "files_trashbin", "files_versions",
    # Programs for photos: Picasa, digiKam, iPod and Sony cameras' video thumbnails.
    ".picasaoriginals", ".dtrash", "iPod Photo Cache", "THMBNL",
)  # fmt: skip
_FOLDER_PATTERNS = (
    ".Trash*",  # .Trash, .Trashes, .Trash-1000
    "*.lrdata",  # Lightroom: previews and smart previews
    "*.download",  # Safari
    "appdata_oc*",  # Nextcloud
)
_FILES = (
    "Thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "Icon\r",
    ".DS_Store", "ZbThumbnail.info", "Picasa.ini", ".picasa.ini", "thumbnails.db",
    "thumbnails-digikam.db",
)  # fmt: skip
_FILE_PATTERNS = (
    "._*",  # macOS: what its file system holds beside a file
    "~$*",  # open in an office program
    "SYNOPHOTO_THUMB_*",
    "SYNOFILE_THUMB_*",
    ".trashed-*",  # Android
    ".pending-*",
    ".syncthing.*",
    "~syncthing~*",
    # Downloads that have not ended.
    "*.part", "*.partial", "*.crdownload", "*.opdownload", "*.download", "*.filepart",
    "*.!ut", "*.bc!", "*.aria2",
)  # fmt: skip
# Folders that a program shows as one file, and what in them holds the photos.
_LIBRARIES = (".photoslibrary", ".photolibrary", ".migratedphotolibrary", ".aplibrary")
_ORIGINALS = ("originals", "masters")


@dataclass(frozen=True)
class Found:
    """What lies below a folder.

    Attributes:
        images: paths relative to the folder with "/", sorted by code point.
        others: extension -> number of files that are no images; the most frequent
            first. A phone's ".heic" photos may be such: their owner should hear of it.
        leftovers: row of the list above -> number of files of other programs
            (thumbnails, recycle bins); the most frequent first.
        closed: (name, reason) of each folder that cannot be listed, whose photos
            are missing.
    """

    images: list[str]
    others: dict[str, int]
    leftovers: dict[str, int]
    closed: tuple[tuple[str, str], ...]


def look(root: str | pathlib.Path) -> Found:
    """Looks through a folder, recursively.

    Left out are hidden files and folders (".name", among them macOS's "._name" twins
    of every photo), what other programs have left (`leftover`), and sub-folders that
    this program has written (runs, reports, reconstructions). Linked folders are
    followed, each once.
    """
    root = str(root)
    names: list[str] = []
    left: collections.Counter[str] = collections.Counter()
    closed: list[tuple[str, str]] = []

    def note(error: OSError) -> None:
        name = pathlib.Path(error.filename).relative_to(root).as_posix()
        closed.append((name, error.strerror or type(error).__name__))

    visited = set()
    for folder, subfolders, files in os.walk(root, onerror=note, followlinks=True):
        real = os.path.realpath(folder)
        written = any(out <= {*subfolders, *files} for out in _OUTPUTS)
        if real in visited or (folder != root and written):
            subfolders.clear()
            continue
        visited.add(real)
        prefix, here = pathlib.Path(folder).relative_to(root), os.path.basename(real)
        kept = []
        for name in sorted(subfolders):
            if kind := leftover(name, here, is_folder=True):
                below = os.walk(os.path.join(folder, name))
                left[kind] += sum(len(inside) for _, _, inside in below)
            elif not name.startswith("."):
                kept.append(name)
        subfolders[:] = kept
        for name in files:
            if kind := leftover(name, here, is_folder=False):
                left[kind] += 1
            elif not name.startswith("."):
                names.append((prefix / name).as_posix())
    suffixes = collections.Counter(map(_suffix, names)).most_common()
    return Found(
        images=sorted(n for n in names if _suffix(n) in images.EXTENSIONS),
        others={s: n for s, n in suffixes if s not in images.EXTENSIONS},
        leftovers={kind: count for kind, count in left.most_common() if count},
        closed=tuple(sorted(closed)),
    )


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _matcher(names: Iterable[str], patterns: Iterable[str]) -> re.Pattern:
    """One expression with a group a row; "*" is the only special character."""
    rows = (re.escape(row).replace(r"\*", ".*") for row in (*names, *patterns))
    return re.compile("|".join(f"({row})" for row in rows), re.IGNORECASE | re.DOTALL)


_ROWS = {True: (*_FOLDERS, *_FOLDER_PATTERNS), False: (*_FILES, *_FILE_PATTERNS)}
_MATCHERS = {
    True: _matcher(_FOLDERS, _FOLDER_PATTERNS),
    False: _matcher(_FILES, _FILE_PATTERNS),
}


def leftover(name: str, parent: str, *, is_folder: bool) -> str | None:
    """The row of the list that a file or folder belongs to, such as "@eaDir".

    Args:
        name: of the file or folder, without a path.
        parent: name of the folder it lies in.
        is_folder: whether it is a folder.
    """
    if match := _MATCHERS[is_folder].fullmatch(name):
        return _ROWS[is_folder][match.lastindex - 1]
    for suffix in _LIBRARIES if is_folder else ():
        if parent.lower().endswith(suffix) and name.lower() not in _ORIGINALS:
            return f"*{suffix}"
    return None
