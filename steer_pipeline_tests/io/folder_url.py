"""An object store that several processes of a test see: `folder:///path`, a directory that is taken for remote."""

import fsspec
from fsspec.implementations.local import LocalFileSystem


class FolderFileSystem(LocalFileSystem):
    """The local file system under another name."""

    protocol = "folder"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("folder://"))


def register() -> None:
    """Makes the scheme known to this process."""
    fsspec.register_implementation("folder", FolderFileSystem, clobber=True)
