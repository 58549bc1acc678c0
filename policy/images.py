"""Images in production are named by what they are, and not by a tag that may be moved."""

from collections.abc import Iterator
from fnmatch import fnmatchcase

from planner.errors import Problem
from planner.versions import AZURE_LUSTRE, GPUDIRECT
from policy.pods import containers
from policy.settings import Images
from policy.stack import Resource, at, matches

BY_TAG = (
    f"{AZURE_LUSTRE.image}*",
    AZURE_LUSTRE.registrar,
    AZURE_LUSTRE.liveness_probe,
    *(image for kind in GPUDIRECT.values() for image in (kind.installer, kind.daemon)),
)
"""Drivers whose makers name them by tags alone, and whose tags planner/versions.py pins."""


def by_tag(resource: Resource, settings: Images) -> Iterator[Problem]:
    """Images of a pod that are not named by digest. A reference that is not known yet is judged when it is."""
    if not matches(resource.stack, settings.production):
        return
    named = {str(image) for one in containers(resource) if isinstance(image := at(one, "image"), str)}
    for image in sorted(named):
        if "@sha256:" not in image and not any(fnmatchcase(image, known) for known in (*BY_TAG, *settings.by_tag)):
            yield Problem(
                key=resource.name,
                what=f"{image} is named by a tag",
                consequence="whoever moves the tag changes what runs in production, and nobody would have reviewed it",
                fix="give images.triton with its digest (…@sha256:…), and images.python_digest",
            )
