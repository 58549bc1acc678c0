"""The managed clouds' facts by name."""

from planner.clouds import aws, azure, gcp
from planner.clouds.facts import CloudFacts

CLOUDS = {facts.name: facts for facts in (aws.FACTS, gcp.FACTS, azure.FACTS)}


def cloud_facts(name: str) -> CloudFacts:
    """The facts of a managed cloud; KeyError for any other."""
    return CLOUDS[name]
