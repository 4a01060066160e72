"""The console's routes of this room."""

from django.urls import path

from batches.console import detail, gate, hooks, lists, results, wizard

urlpatterns = [
    path("batches", lists.batches, name="batches"),
    path("batches/export.csv", lists.export, name="export_batches"),
    path("batches/cancel", lists.bulk_cancel, name="cancel_batches"),
    path("batches/retry", lists.bulk_retry, name="retry_batches"),
    path("batches/new", wizard.choose, name="new_batch"),
    path("batches/new/<str:file_id>", wizard.describe, name="describe_batch"),
    path("batches/new/<str:file_id>/check", wizard.check, name="check_batch"),
    path("batches/new/<str:file_id>/confirm", wizard.confirm, name="confirm_batch"),
    path("batches/<str:batch_id>", detail.detail, name="batch"),
    path("batches/<str:batch_id>/raw", detail.raw, name="batch_raw"),
    path("batches/<str:batch_id>/results", results.results, name="batch_results"),
    path("batches/<str:batch_id>/results/<int:line>", results.line, name="batch_line"),
    path("batches/<str:batch_id>/<str:action>", detail.act, name="batch_action"),
    path("system/intake/pause", gate.pause, name="pause_intake"),
    path("system/intake/resume", gate.resume, name="resume_intake"),
    path("webhooks", hooks.webhooks, name="webhooks"),
    path("webhooks/create", hooks.create, name="create_webhook"),
    path("webhooks/deliveries/<str:delivery_id>", hooks.delivery, name="delivery"),
    path("webhooks/deliveries/<str:delivery_id>/again", hooks.redeliver, name="redeliver"),
    path("webhooks/<str:endpoint_id>/<str:action>", hooks.act, name="webhook_action"),
]
