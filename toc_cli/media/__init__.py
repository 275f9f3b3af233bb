"""Pictures and sound on disk to arrays that a codec reads: what lies in a folder, and one file at a time."""

from toc_cli.media.arrays import list_arrays
from toc_cli.media.listing import MediaFile, Mediakind, holds_arrays, holds_media, list_media
from toc_cli.media.reading import Shape, read_media

__all__ = ["MediaFile", "Mediakind", "Shape", "holds_arrays", "holds_media", "list_arrays", "list_media", "read_media"]
