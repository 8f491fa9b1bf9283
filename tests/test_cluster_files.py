"""What lies in cluster/ is valid, of the locked versions, sized without contradiction, and closed unless opened.

RayCluster and RayJob are not among Kubernetes' own kinds: what they say of pods is validated as pods are.
"""

import configparser
import re
import shlex
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from polytrain.recipe_file import load
from polytrain.secrecy import IN_URI

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
LOCKED = dict(re.findall(r"^([\w.\-]+)==([^\s;]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
VERSION = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
TEXTS = {str(file.relative_to(ROOT)): file.read_text() for file in CLUSTER.rglob("*") if file.is_file()}


def documents(name):
    return [document for document in yaml.safe_load_all((CLUSTER / name).read_text()) if document]


def of_kind(name, kind):
    (found,) = [document for document in documents(name) if document["kind"] == kind]
    return found


RAY_CLUSTERS = {
    "cluster.yaml": of_kind("kuberay/cluster.yaml", "RayCluster")["spec"],
    "job.yaml": of_kind("kuberay/job.yaml", "RayJob")["spec"]["rayClusterSpec"],
}
JOB = of_kind("kuberay/job.yaml", "RayJob")["spec"]
RAY_POLICIES = {name: of_kind(f"kuberay/{name}", "NetworkPolicy")["spec"] for name in RAY_CLUSTERS}
MLFLOW = documents("mlflow/kubernetes.yaml")
COMPOSE = documents("mlflow/compose.yaml")[0]["services"]
RAY_UP = {name: yaml.safe_load((CLUSTER / "ray_up" / name).read_text()) for name in ("aws.yaml", "gcp.yaml")}

RAY_PODS = {
    f"{file}, {group.get('groupName', 'head')}": (group["template"]["spec"], group["rayStartParams"])
    for file, spec in RAY_CLUSTERS.items()
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])
}
PODS = (
    {name: pod for name, (pod, _) in RAY_PODS.items()}
    | {"job.yaml, submitter": JOB["submitterPodTemplate"]["spec"]}
    | {
        f"mlflow, {document['metadata']['name']}": document["spec"]["template"]["spec"]
        for document in MLFLOW
        if document["kind"] in ("Deployment", "StatefulSet")
    }
)
CONTAINERS = {f"{name}, {one['name']}": one for name, pod in PODS.items() for one in pod["containers"]}
CONTAINERS |= {f"{name}, autoscaler": spec["autoscalerOptions"] for name, spec in RAY_CLUSTERS.items()}


def byte_count(quantity):
    number, unit = re.fullmatch(r"(\d+)(Ki|Mi|Gi|Ti)?", str(quantity)).groups()
    return int(number) * 1024 ** ("", "Ki", "Mi", "Gi", "Ti").index(unit or "")


# --- valid --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["mlflow/kubernetes.yaml", "kuberay/storage.yaml", "kuberay/cluster.yaml", "kuberay/job.yaml"]
)
def test_kubernetes_knows_every_field_of_its_own_kinds(name):
    own = [document for document in documents(name) if not document["apiVersion"].startswith("ray.io/")]
    assert own
    for document in own:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("name", PODS)
def test_every_pod_that_others_start_is_one_that_kubernetes_knows(name):
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": PODS[name]}
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_a_misspelt_field_would_be_found():
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": [], "volums": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_up_takes_its_files(name):
    config = prepare_config(yaml.safe_load((CLUSTER / "ray_up" / name).read_text()))
    validate_config(config)


@pytest.mark.parametrize("name", RAY_UP)
def test_cloud_machines_install_nothing_when_they_start(name):
    config = prepare_config(yaml.safe_load((CLUSTER / "ray_up" / name).read_text()))
    commands = {
        key: value for key, value in config.items() if key.endswith(("setup_commands", "initialization_commands"))
    }
    assert commands == {
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
    }, "Ray's own would install a nightly build, and a client of the cloud's API of any version"


def test_the_image_has_what_a_head_needs_to_start_machines():
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["cloud"]
    assert {re.match(r"[\w-]+", requirement)[0] for requirement in needed} == {"boto3", "google-api-python-client"}
    assert {"boto3", "google-api-python-client"} <= LOCKED.keys()
    assert "pyproject.toml --extra cloud" in re.sub(r"\s*\\\n\s*", " ", TEXTS["cluster/Dockerfile"])


def test_ray_gets_into_gcp_machines_and_knows_what_they_have():
    file = RAY_UP["gcp.yaml"]
    types = file["available_node_types"]
    # Of each series: cores, and the GPUs that its machine types bring along.
    assert {name: (one["node_config"]["machineType"], one["resources"]) for name, one in types.items()} == {
        "head": ("n2-standard-4", {"CPU": 0}),
        "train_gpu": ("g2-standard-8", {"CPU": 8, "GPU": 1}),
        "decode_cpu": ("c3-standard-22", {"CPU": 22}),
    }
    zone, project = file["provider"]["availability_zone"], file["provider"]["project_id"]
    for name, one in types.items():
        config = one["node_config"]
        assert "block-project-ssh-keys" not in {item["key"] for item in config["metadata"]["items"]}, (
            "Ray's key is one of the project's"
        )
        (disk,) = config["disks"]
        assert disk["initializeParams"]["diskType"] == f"zones/{zone}/diskTypes/pd-balanced"
        if name != "head":  # which has the account with all its rights from Ray
            (account,) = config["serviceAccounts"]
            assert account["email"] == f"ray-autoscaler-sa-v1@{project}.iam.gserviceaccount.com"
            assert account["scopes"] == ["https://www.googleapis.com/auth/devstorage.read_write"]


def test_what_manifests_mount_and_name_is_there():
    for name, pod in PODS.items():
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        if "StatefulSet" not in name and "postgres" not in name:
            for container in pod["containers"]:
                assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes, name
    (claim,) = documents("kuberay/storage.yaml")
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for pod, _ in RAY_PODS.values()
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == {claim["metadata"]["name"]}
    labels = {
        d["metadata"]["name"]: d["spec"]["template"]["metadata"]["labels"]
        for d in MLFLOW
        if "template" in d.get("spec", {})
    }
    for service in (document for document in MLFLOW if document["kind"] == "Service"):
        assert service["spec"]["selector"] in labels.values()


def test_every_file_that_a_cluster_file_speaks_of_exists():
    for name, text in TEXTS.items():
        for path in re.findall(r"(?<![\w/.])(?:cluster|jobs)/[\w/.\-]*\.(?:yaml|py|md|ini|example)", text):
            if path != "jobs/recipes/mine.yaml":
                assert (ROOT / path).exists(), f"{name} speaks of {path}"


def test_the_jobs_recipe_and_its_overrides_are_right(monkeypatch):
    words = shlex.split(JOB["entrypoint"])
    assert words[:2] == ["python", "jobs/cotrain.py"]
    recipe = load(ROOT / words[2], words[3:])
    groups = {group["groupName"]: group for group in JOB["rayClusterSpec"]["workerGroupSpecs"]}
    assert groups["train-gpu"]["minReplicas"] == recipe.train.workers, "a run wants its GPUs at its start"
    decoders = groups["decode-cpu"]
    cpus = int(decoders["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert recipe.data.decode_cpus <= cpus * decoders["maxReplicas"]


# --- versions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RAY_CLUSTERS)
def test_the_version_of_ray_is_the_locked_one(name):
    assert RAY_CLUSTERS[name]["rayVersion"] == LOCKED["ray"]


def test_the_servers_mlflow_is_the_locked_one():
    assert re.findall(r"mlflow\[auth\]==([\d.]+)", TEXTS["cluster/Dockerfile"]) == [LOCKED["mlflow"]]


def test_our_images_are_of_this_version_and_others_are_pinned():
    images = {one["image"] for one in CONTAINERS.values() if "image" in one}
    images |= {service["image"] for service in COMPOSE.values()} | {file["docker"]["image"] for file in RAY_UP.values()}
    for image in images:
        name, _, tag = image.removesuffix("}").rpartition(":")
        assert tag == VERSION if "polytrain" in name else re.search(r"\d", tag), image


# --- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTAINERS)
def test_requests_equal_limits(name):
    resources = CONTAINERS[name]["resources"]
    assert resources["requests"] == resources["limits"]
    assert {"cpu", "memory"} <= set(resources["limits"])


@pytest.mark.parametrize("name", RAY_PODS)
def test_the_object_store_fits_its_memory_and_spilling_its_disk(name):
    pod, start = RAY_PODS[name]
    (container,) = pod["containers"]
    limits = container["resources"]["limits"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    shared = byte_count(volumes[mounts["/dev/shm"]]["emptyDir"]["sizeLimit"])
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert int(start["object-store-memory"]) < shared < byte_count(limits["memory"]) / 2
    spill = byte_count(volumes[mounts["/tmp/ray"]]["emptyDir"]["sizeLimit"])
    assert 2 * int(start["object-store-memory"]) < spill < byte_count(limits["ephemeral-storage"])


@pytest.mark.parametrize("name", RAY_CLUSTERS)
def test_the_autoscalers_logs_lie_beside_the_heads(name):
    """KubeRay mounts a volume `ray-logs` at /tmp/ray of the autoscaler, and makes it where there is none."""
    head = RAY_CLUSTERS[name]["headGroupSpec"]["template"]["spec"]
    (container,) = head["containers"]
    assert {"name": "ray-logs", "mountPath": "/tmp/ray"} in container["volumeMounts"]
    assert "volumeMounts" not in RAY_CLUSTERS[name]["autoscalerOptions"]


@pytest.mark.parametrize("name", RAY_CLUSTERS)
def test_gpus_and_decoding_are_groups_of_their_own_that_grow_and_shrink(name):
    spec = RAY_CLUSTERS[name]
    assert spec["enableInTreeAutoscaling"] is True
    gpus = {
        group["groupName"]: "nvidia.com/gpu" in group["template"]["spec"]["containers"][0]["resources"]["limits"]
        for group in spec["workerGroupSpecs"]
    }
    assert gpus == {"train-gpu": True, "decode-cpu": False}
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


# --- closed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RAY_CLUSTERS)
def test_ray_asks_for_a_token(name):
    assert RAY_CLUSTERS[name]["authOptions"] == {"mode": "token"}
    assert RAY_CLUSTERS[name]["headGroupSpec"]["serviceType"] == "ClusterIP"


@pytest.mark.parametrize("name", RAY_CLUSTERS)
def test_pods_of_ray_are_reached_by_those_of_their_own_cluster_only(name):
    spec, policy = RAY_CLUSTERS[name], RAY_POLICIES[name]
    groups = (spec["headGroupSpec"], *spec["workerGroupSpecs"])
    labels = [group["template"]["metadata"]["labels"] for group in groups]
    assert labels == [policy["podSelector"]["matchLabels"]] * 3
    assert policy["policyTypes"] == ["Ingress"]
    inside, *outside = policy["ingress"]
    assert inside == {"from": [{"podSelector": policy["podSelector"]}]}
    if name == "cluster.yaml":
        assert outside == []
    else:  # who sends the job, and who asks how it goes
        ((dashboard,),) = [rule["ports"] for rule in outside]
        assert dashboard == {"port": 8265}
        submitter, operator = outside[0]["from"]
        assert submitter["podSelector"]["matchLabels"] == JOB["submitterPodTemplate"]["metadata"]["labels"]
        assert operator["podSelector"]["matchLabels"] == {"app.kubernetes.io/component": "kuberay-operator"}
    others = [RAY_POLICIES[other]["podSelector"] for other in RAY_CLUSTERS if other != name]
    assert policy["podSelector"] not in others, "clusters do not reach each other"


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_asks_for_a_token_on_cloud_machines_and_shows_its_dashboard_to_none(name):
    file = RAY_UP[name]
    starts = [line for key in ("head", "worker") for line in file[f"{key}_start_ray_commands"] if "ray start" in line]
    assert len(starts) == 2
    assert all(line.startswith("RAY_AUTH_MODE=token ") for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert file["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_may_not_rise_above_what_they_are(name):
    context = CONTAINERS[name]["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("name", PODS)
def test_pods_do_not_run_as_root(name):
    context = PODS[name]["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] > 0


def test_images_do_not_run_as_root():
    stages = re.split(r"^FROM ", TEXTS["cluster/Dockerfile"], flags=re.MULTILINE)[1:]
    targets = {stage.split()[2]: stage for stage in stages if " AS " in stage.splitlines()[0]}
    for name in ("ray", "mlflow"):
        assert re.findall(r"^USER (.+)$", targets[name], re.MULTILINE)[-1] == "1000:1000"


def mlflow_commands():
    (deployment,) = [document for document in MLFLOW if document["kind"] == "Deployment"]
    yield "kubernetes", deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    text = COMPOSE["mlflow"]["command"][2].replace("\\\n", " ")
    yield "compose", re.sub(r"(--[\w-]+) (?!--)", r"\1=", text).split()


@pytest.mark.parametrize(("where", "words"), list(mlflow_commands()))
def test_the_mlflow_server_asks_who_you_are_and_for_which_host(where, words):
    given = {word.partition("=")[0]: word.partition("=")[2] for word in words if word.startswith("--")}
    assert given["--app-name"] == "basic-auth"
    assert given["--allowed-hosts"]
    assert given["--cors-allowed-origins"]
    assert "*" not in given["--allowed-hosts"] + given["--cors-allowed-origins"]
    assert "--disable-security-middleware" not in given
    assert given["--backend-store-uri"].startswith("postgresql+psycopg2://mlflow@")
    assert given["--artifacts-destination"].startswith("s3://")


def test_who_may_do_what_is_the_same_in_both_of_mlflows_files():
    (settings,) = [document["data"] for document in MLFLOW if document["kind"] == "ConfigMap"]
    both = []
    for text in (settings["auth.ini"], TEXTS["cluster/mlflow/auth.ini"]):
        parser = configparser.ConfigParser()
        parser.read_string(text)
        both.append(dict(parser["mlflow"]))
    assert both[0] == both[1]
    assert "admin_password" not in both[0]
    assert settings["databases.sql"].strip() in TEXTS["cluster/mlflow/databases.sql"]


def test_the_compose_file_opens_one_port_to_this_machine_alone():
    ports = {name: service["ports"] for name, service in COMPOSE.items() if "ports" in service}
    assert ports == {"mlflow": ["127.0.0.1:5000:5000"]}


def test_services_are_reached_from_within_the_cluster_only():
    services = [document["spec"] for document in MLFLOW if document["kind"] == "Service"]
    assert all(spec.get("type", "ClusterIP") == "ClusterIP" for spec in services)


def test_no_file_holds_a_secret():
    for name, text in TEXTS.items():
        assert not [word for word in re.findall(r"\w+://[^\s\"']+", text) if re.match(IN_URI, word)], name
    secret = re.compile("PASSWORD|SECRET|TOKEN|ACCESS_KEY")
    for name, container in CONTAINERS.items():
        for variable in container.get("env", []):
            assert not secret.search(variable["name"]) or "valueFrom" in variable, name
    for service in COMPOSE.values():
        for variable, value in service["environment"].items():
            assert not secret.search(variable) or re.match(r"\$\{\w+", value), variable
    assert "env_vars" in (environment := yaml.safe_load(TEXTS["cluster/runtime_env.yaml"]))
    assert not any(secret.search(variable) for variable in environment["env_vars"])
    example = TEXTS["cluster/mlflow/environment.example"]
    assert all(line.startswith("#") or line.endswith("=") for line in example.splitlines())
    assert ".env" in TEXTS["cluster/mlflow/.gitignore"].split()
