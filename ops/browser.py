"""The browser that checks of pages use, and the ways in which a page is looked at."""

import shutil
import sys

# Window, and whether the system's colours are dark.
VIEWS = {
    "light": (1400, 1000, False),
    "dark": (1400, 1000, True),
    "narrow": (500, 900, False),
}


def chromium(given=None):
    """The Chromium to use; leaves with 2 where there is none."""
    found = given or shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        sys.exit(print("error: no Chromium\nhint: apt-get install chromium", file=sys.stderr) or 2)
    return found
