"""Looking at rows: figures and a page, what two datasets differ in, and the card of a sealed one."""

from tunesmith.data.look.difference import Change, Difference, diff
from tunesmith.data.look.page import page
from tunesmith.data.look.places import Place, open_place
from tunesmith.data.look.statistics import Stats, stats

__all__ = ["Change", "Difference", "Place", "Stats", "diff", "open_place", "page", "stats"]
