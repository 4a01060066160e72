"""What `manage.py check --deploy` says about a server that others are to use, besides Django's own checks."""

from typing import Any

from django.conf import settings
from django.core.checks import WARNING, CheckMessage, Tags, register


@register(Tags.security, deploy=True)
def check_deployment(app_configs: Any, **_: Any) -> list[CheckMessage]:
    """Name settings that suit a trusted network only."""
    doubts = [
        ("*" in settings.ALLOWED_HOSTS, "Any Host header is accepted.", "Set VBATCH_ALLOWED_HOSTS.", "W001"),
        (settings.VBATCH_AUTH == "optional", "Requests need no key.", "Leave VBATCH_AUTH at required.", "W002"),
        (settings.VBATCH_ENGINE == "sim", "Answers are made up.", "Leave VBATCH_ENGINE at vllm.", "W003"),
    ]
    return [CheckMessage(WARNING, said, hint, id=f"vbatch.{code}") for is_so, said, hint, code in doubts if is_so]
