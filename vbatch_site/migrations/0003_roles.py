"""The rights of the console, and the three roles that hold them."""

from typing import Any

from django.db import migrations

RIGHTS = {
    "view_console": "Can open the console",
    "view_prompts": "Can see requests and answers",
    "operate": "Can upload, create, steer and download",
    "administer": "Can manage keys, webhooks, models and services",
}
ROLES = {
    "viewer": ["view_console"],
    "operator": ["view_console", "view_prompts", "operate"],
    "administrator": list(RIGHTS),
}
# What the admin's lists may show to every role: no table here has prompts or answers in a column.
SEEN = {
    "vbatch_site": ["project", "apikey"],
    "files": ["file", "upload"],
    "batches": ["batch", "batchevent", "shard", "result"],
    "workers": ["servedmodel", "service", "worker"],
}
# Not users and groups: who may change those can make a superuser.
WRITTEN_BY_ADMINISTRATORS = {"vbatch_site": ["project", "apikey"], "workers": ["servedmodel"]}


def make_roles(apps: Any, schema_editor: Any) -> None:
    """Make permissions, which Django would only make after the last migration, and the groups."""
    types = apps.get_model("contenttypes", "ContentType").objects
    permissions = apps.get_model("auth", "Permission").objects

    def permission(app: str, model: str, codename: str, name: str) -> Any:
        kind, _ = types.get_or_create(app_label=app, model=model)
        found, _ = permissions.get_or_create(content_type=kind, codename=codename, defaults={"name": name})
        return found

    rights = {code: permission("vbatch_site", "project", code, name) for code, name in RIGHTS.items()}
    seen = [permission(app, m, f"view_{m}", f"Can view {m}") for app, models in SEEN.items() for m in models]
    written = [
        permission(app, model, f"{verb}_{model}", f"Can {verb} {model}")
        for app, models in WRITTEN_BY_ADMINISTRATORS.items()
        for model in models
        for verb in ("add", "change")
    ]
    for role, held in ROLES.items():
        group, _ = apps.get_model("auth", "Group").objects.get_or_create(name=role)
        group.permissions.add(*[rights[code] for code in held], *seen)
        if role == "administrator":
            group.permissions.add(*written)


class Migration(migrations.Migration):
    dependencies = [
        ("vbatch_site", "0002_tables"),
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
    ]

    operations = [
        migrations.RunPython(make_roles, migrations.RunPython.noop),
    ]
