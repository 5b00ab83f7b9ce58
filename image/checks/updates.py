"""Updates from slot to slot, and settings of the boot partition, with the commands of the image's own
binary."""

from .kit import Image, Report


def check_all(image: Image, report: Report) -> None:
    """Every check of this module."""
