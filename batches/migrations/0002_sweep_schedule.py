"""Let the default cluster sweep once a minute, also where no gpu cluster runs."""

from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

SWEEP = "batches.tasks.sweep"


def schedule(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Add the schedule if it is not there."""
    model = apps.get_model("django_q", "Schedule")
    model.objects.get_or_create(
        func=SWEEP, defaults={"name": "sweep", "schedule_type": "I", "minutes": 1, "repeats": -1, "cluster": "default"}
    )


def unschedule(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Remove it."""
    apps.get_model("django_q", "Schedule").objects.filter(func=SWEEP).delete()


class Migration(migrations.Migration):
    dependencies = [("batches", "0001_initial"), ("django_q", "__latest__")]

    operations = [migrations.RunPython(schedule, unschedule)]
