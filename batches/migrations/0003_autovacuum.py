"""Clean up after results, shards and tasks while they still come: they are written once and gone within the hour."""

from django.db import migrations

# The default waits until a fifth of a table is dead, and then takes rests: with millions of rows that is far too late.
_OFTEN = (
    "autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = {threshold}, autovacuum_vacuum_cost_delay = 0"
)
# Room beside each row, so that counters and leases are written where they are and the indexes are left alone.
_IN_PLACE = "fillfactor = 70, "

_OPTIONS = {
    "batches_result": _OFTEN.format(threshold=5000)
    + ", toast.autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_threshold = 5000"
    + ", toast.autovacuum_vacuum_cost_delay = 0",
    "batches_shard": _IN_PLACE + _OFTEN.format(threshold=500),
    "batches_batch": _IN_PLACE + _OFTEN.format(threshold=500),
    "django_q_ormq": _OFTEN.format(threshold=500),
}


def _names(options):
    return ", ".join(part.partition("=")[0].strip() for part in options.split(","))


class Migration(migrations.Migration):
    dependencies = [("batches", "0002_sweep_schedule"), ("django_q", "__latest__")]

    operations = [
        migrations.RunSQL(f"ALTER TABLE {table} SET ({options})", f"ALTER TABLE {table} RESET ({_names(options)})")
        for table, options in _OPTIONS.items()
    ]
