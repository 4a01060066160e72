"""Keep with shards why their lines never ran: it may be another reason for each model."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("batches", "0003_autovacuum"),
    ]

    operations = [
        migrations.AddField(
            model_name="shard",
            name="abort_code",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                editable=False,
                help_text="Why its lines that never ran did not; empty: as the batch says.",
                max_length=64,
            ),
        ),
        migrations.AddField(
            model_name="shard",
            name="abort_message",
            field=models.TextField(blank=True, db_default="", default="", editable=False),
        ),
    ]
