//! The attribute keys of OpenTelemetry's semantic conventions 1.44.0 that pitviper uses, those of its instrumentation of
//! Celery, one of Grafana's, by which a span finds its profile, and its own, which begin with `pitviper.`. No other file
//! spells a key.

/// Schema of the names in this file.
pub const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.44.0";

macro_rules! keys {
    ($($name:ident = $key:literal;)*) => {
        $(#[doc = concat!("`", $key, "`")] pub const $name: &str = $key;)*
    };
}

keys! {
    CELERY_ACTION = "celery.action";
    CELERY_HOSTNAME = "celery.hostname";
    CELERY_RETRIES = "celery.retries";
    CELERY_STATE = "celery.state";
    CELERY_TASK_NAME = "celery.task_name";
    CLIENT_ADDRESS = "client.address";
    CLIENT_PORT = "client.port";
    CODE_STACKTRACE = "code.stacktrace";
    CONTAINER_ID = "container.id";
    DB_COLLECTION_NAME = "db.collection.name";
    DB_NAMESPACE = "db.namespace";
    DB_OPERATION_BATCH_SIZE = "db.operation.batch.size";
    DB_OPERATION_NAME = "db.operation.name";
    DB_QUERY_SUMMARY = "db.query.summary";
    DB_QUERY_TEXT = "db.query.text";
    DB_RESPONSE_RETURNED_ROWS = "db.response.returned_rows";
    DB_RESPONSE_STATUS_CODE = "db.response.status_code";
    DB_STORED_PROCEDURE_NAME = "db.stored_procedure.name";
    DB_SYSTEM_NAME = "db.system.name";
    DEPLOYMENT_ENVIRONMENT_NAME = "deployment.environment.name";
    ERROR_TYPE = "error.type";
    HOST_ARCH = "host.arch";
    HOST_ID = "host.id";
    HOST_NAME = "host.name";
    HTTP_REQUEST_BODY_SIZE = "http.request.body.size";
    HTTP_REQUEST_METHOD = "http.request.method";
    HTTP_REQUEST_METHOD_ORIGINAL = "http.request.method_original";
    HTTP_RESPONSE_BODY_SIZE = "http.response.body.size";
    HTTP_RESPONSE_STATUS_CODE = "http.response.status_code";
    HTTP_ROUTE = "http.route";
    K8S_POD_UID = "k8s.pod.uid";
    MESSAGING_DESTINATION_NAME = "messaging.destination.name";
    MESSAGING_MESSAGE_ID = "messaging.message.id";
    MESSAGING_OPERATION_NAME = "messaging.operation.name";
    MESSAGING_OPERATION_TYPE = "messaging.operation.type";
    MESSAGING_SYSTEM = "messaging.system";
    NETWORK_PEER_ADDRESS = "network.peer.address";
    NETWORK_PEER_PORT = "network.peer.port";
    NETWORK_PROTOCOL_NAME = "network.protocol.name";
    NETWORK_PROTOCOL_VERSION = "network.protocol.version";
    NETWORK_TRANSPORT = "network.transport";
    OS_TYPE = "os.type";
    OTEL_COMPONENT_NAME = "otel.component.name";
    OTEL_COMPONENT_TYPE = "otel.component.type";
    OTEL_METRIC_OVERFLOW = "otel.metric.overflow";
    PITVIPER_EVENT_LOOP_BLOCKED = "pitviper.event_loop.blocked";
    PITVIPER_EVENT_LOOP_BLOCKED_DURATION = "pitviper.event_loop.blocked.duration";
    PITVIPER_LINK_REASON = "pitviper.link.reason";
    PITVIPER_LOSS_REASON = "pitviper.loss.reason";
    PITVIPER_ORPHAN_REASON = "pitviper.orphan.reason";
    PITVIPER_PARENT_EVIDENCE = "pitviper.parent.evidence";
    PITVIPER_PROTOCOL = "pitviper.protocol";
    PITVIPER_TARGET_PID = "pitviper.target.process.pid";
    PITVIPER_TARGET_SERVICE = "pitviper.target.service.name";
    PITVIPER_TIER = "pitviper.tier";
    PITVIPER_TIME_GIL_WAIT = "pitviper.time.gil_wait";
    PITVIPER_TIME_ON_CPU = "pitviper.time.on_cpu";
    PITVIPER_TIME_OTHER = "pitviper.time.other";
    PITVIPER_TIME_PEER_NAMES = "pitviper.time.peer.names";
    PITVIPER_TIME_PEER_WAITS = "pitviper.time.peer.waits";
    PITVIPER_TIME_RUN_QUEUE = "pitviper.time.run_queue";
    PITVIPER_TIME_SOCKET_WAIT = "pitviper.time.socket_wait";
    PITVIPER_TIME_UNSURE = "pitviper.time.unsure";
    PROCESS_COMMAND = "process.command";
    PROCESS_CREATION_TIME = "process.creation.time";
    PROCESS_EXECUTABLE_NAME = "process.executable.name";
    PROCESS_EXECUTABLE_PATH = "process.executable.path";
    PROCESS_OWNER = "process.owner";
    PROCESS_PARENT_PID = "process.parent_pid";
    PROCESS_PID = "process.pid";
    PROCESS_RUNTIME_NAME = "process.runtime.name";
    PROCESS_RUNTIME_VERSION = "process.runtime.version";
    PYROSCOPE_PROFILE_ID = "pyroscope.profile.id";
    SERVER_ADDRESS = "server.address";
    SERVER_PORT = "server.port";
    SERVICE_INSTANCE_ID = "service.instance.id";
    SERVICE_NAME = "service.name";
    SERVICE_NAMESPACE = "service.namespace";
    SERVICE_VERSION = "service.version";
    TELEMETRY_DISTRO_NAME = "telemetry.distro.name";
    TELEMETRY_DISTRO_VERSION = "telemetry.distro.version";
    TELEMETRY_SDK_LANGUAGE = "telemetry.sdk.language";
    TELEMETRY_SDK_NAME = "telemetry.sdk.name";
    TELEMETRY_SDK_VERSION = "telemetry.sdk.version";
    URL_FULL = "url.full";
    URL_PATH = "url.path";
    URL_QUERY = "url.query";
    URL_SCHEME = "url.scheme";
    USER_AGENT_ORIGINAL = "user_agent.original";
}
