"""Fill the catalogue of a new installation."""

from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from workers.catalogue import FIRST_ENTRIES


def fill(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Add the entries that are not there."""
    model = apps.get_model("workers", "ServedModel")
    for entry in FIRST_ENTRIES:
        model.objects.get_or_create(name=entry["name"], defaults=entry)


class Migration(migrations.Migration):
    dependencies = [("workers", "0001_initial")]

    operations = [migrations.RunPython(fill, migrations.RunPython.noop)]
