"""The shipped workflows as data, in reading order: for each its title, its note, and its nodes in columns."""

from workflow_apps import APPS
from workflow_chains import CHAINS, PAPER
from workflow_concepts import CONCEPTS
from workflow_families import FAMILIES
from workflow_gallery import GALLERY
from workflow_listing import LISTING
from workflow_models import MODELS
from workflow_parts import numbered
from workflow_subjects import SUBJECTS

WORKFLOWS = numbered([*CONCEPTS, *CHAINS, *MODELS, *SUBJECTS, *GALLERY, *APPS, *LISTING, *FAMILIES, *PAPER])
