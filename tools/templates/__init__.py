"""The shipped workflows as data, in reading order: for each its title, its note, and its nodes in columns."""

from .apps import APPS
from .beside import BESIDE
from .chains import CHAINS, PAPER
from .concepts import CONCEPTS
from .families import FAMILIES
from .gallery import GALLERY
from .listing import LISTING
from .models import MODELS
from .parts import numbered
from .subjects import SUBJECTS

WORKFLOWS = numbered([*CONCEPTS, *CHAINS, *MODELS, *SUBJECTS, *GALLERY, *APPS, *LISTING, *FAMILIES, *PAPER,
                      *BESIDE])
