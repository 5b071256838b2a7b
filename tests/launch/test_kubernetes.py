"""The JobSets and the service account, against the API's models and as JAX asks a cluster."""

import copy
import http.server
import json
import os
import re
import subprocess
import threading
import urllib.parse
from pathlib import Path

import kubernetes
import pydantic
import pytest
import yaml
from jax._src import clusters
from jax._src.clusters import k8s_cluster
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / 'launch' / 'k8s'
VALUES = {
    'NAME': 'run1',
    'IMAGE': 'registry:5000/alexnet_jax:1',
    'DATA_CLAIM': 'imagenet',
    'WORK_CLAIM': 'runs',
    'NODES': '3',
    'DEVICES': '4',
    'CPUS': '24',
    'MEMORY': '96Gi',
    'SLICES': '2',
    'TPU_TYPE': 'tpu-v5-lite-podslice',
    'TPU_TOPOLOGY': '4x4',
    'NAMESPACE': 'vision',
    'QUEUE': 'night',
    'MAX_RESTARTS': '7',
    'GRACE_S': '200',
}
# Each would be lost or changed by a careless quoting of shell or YAML.
ARGUMENTS = ['--config=a b.py', "--x=it's", '--y=(1, 2)', '--z="$HOME" # {n}', '--w=']
KUBECTL = '#!/bin/bash\necho "$*" >"$RECORD/arguments"\ncat >"$RECORD/manifest"\n'


@pytest.fixture
def submit(tmp_path):
    """Run submit.sh with a kubectl that records."""
    (tmp_path / 'kubectl').write_text(KUBECTL)
    (tmp_path / 'kubectl').chmod(0o755)

    def run(*arguments: str, values: dict[str, str] = VALUES):
        path = f'{tmp_path}:{os.environ["PATH"]}'
        return subprocess.run(
            [K8S / 'submit.sh', *arguments],
            env={'PATH': path, 'RECORD': str(tmp_path)} | values,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def jobset(submit, tmp_path):
    def render(kind: str) -> dict:
        run = submit(kind, *ARGUMENTS)
        assert run.returncode == 0, run.stderr
        assert (tmp_path / 'arguments').read_text() == 'create --filename=-\n'
        return yaml.safe_load((tmp_path / 'manifest').read_text())

    return render


def job_of(jobset: dict) -> dict:
    [replicated] = jobset['spec']['replicatedJobs']
    return replicated['template']['spec']


def same_after_a_round_trip(manifest: dict) -> bool:
    """Say whether the API's model knows all fields; raise ValidationError for a wrong type."""
    model = JobsetV1alpha2JobSet.from_dict(copy.deepcopy(manifest))
    assert model is not None
    return json.loads(model.to_json()) == manifest


@pytest.mark.parametrize('kind', ['gpu', 'tpu'])
def test_the_api_knows_every_field(jobset, kind):
    manifest = jobset(kind)
    assert same_after_a_round_trip(manifest)
    unknown, wrong = copy.deepcopy(manifest), copy.deepcopy(manifest)
    job_of(unknown)['template']['spec']['restart'] = 'Never'
    assert not same_after_a_round_trip(unknown)
    job_of(wrong)['parallelism'] = '3'
    with pytest.raises(pydantic.ValidationError, match='parallelism'):
        same_after_a_round_trip(wrong)


@pytest.mark.parametrize('kind', ['gpu', 'tpu'])
def test_every_value_arrives(jobset, kind):
    manifest = jobset(kind)
    assert '${' not in json.dumps(manifest)
    job = job_of(manifest)
    pod = job['template']['spec']
    [container] = pod['containers']
    device = {'gpu': 'nvidia.com/gpu', 'tpu': 'google.com/tpu'}[kind]
    claims = [v['persistentVolumeClaim']['claimName'] for v in pod['volumes'][:2]]
    assert manifest['metadata']['name'] == 'run1'
    assert manifest['metadata']['namespace'] == 'vision'
    assert manifest['metadata']['labels'] == {'kueue.x-k8s.io/queue-name': 'night'}
    assert manifest['spec']['failurePolicy']['maxRestarts'] == 7
    assert job['parallelism'] == job['completions'] == 3
    assert pod['terminationGracePeriodSeconds'] == 200
    assert container['image'] == 'registry:5000/alexnet_jax:1'
    assert container['resources']['requests'] == {'cpu': '24', 'memory': '96Gi'}
    assert container['resources']['limits'] == {'memory': '96Gi', device: '4'}
    assert claims == ['runs', 'imagenet']
    assert container['args'] == [*ARGUMENTS, '--workdir=/runs/run1', '--data_dir=/data']
    if kind == 'tpu':
        assert manifest['spec']['replicatedJobs'][0]['replicas'] == 2
        assert pod['nodeSelector'] == {
            'cloud.google.com/gke-tpu-accelerator': 'tpu-v5-lite-podslice',
            'cloud.google.com/gke-tpu-topology': '4x4',
        }


@pytest.mark.parametrize('kind', ['gpu', 'tpu'])
def test_exit_codes_1_2_and_3_stop_and_all_others_start_again(jobset, kind):
    """The pod's rule makes the job fail with the reason that the JobSet's rule names."""
    manifest = jobset(kind)
    job = job_of(manifest)
    codes = {'operator': 'In', 'values': [1, 2, 3]}
    assert job['podFailurePolicy'] == {'rules': [{'action': 'FailJob', 'onExitCodes': codes}]}
    assert (job['backoffLimit'], job['template']['spec']['restartPolicy']) == (0, 'Never')
    [rule] = manifest['spec']['failurePolicy']['rules']
    assert (rule['action'], rule['onJobFailureReasons']) == ('FailJobSet', ['PodFailurePolicy'])


def test_the_gpu_environment_is_that_of_env_gpu_sh(jobset):
    [container] = job_of(jobset('gpu'))['template']['spec']['containers']
    sourced = subprocess.run(
        ['bash', '-c', f'source {ROOT}/launch/env_gpu.sh; env -0'],
        env={'PATH': os.environ['PATH']},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split('\0')
    here = {v['name']: v['value'] for v in container['env']}
    assert here == dict(e.split('=', 1) for e in sourced if re.match(r'JAX|XLA|NCCL|CUDA', e))


@pytest.mark.parametrize('name', ['NAME', 'IMAGE', 'DATA_CLAIM', 'WORK_CLAIM'])
def test_a_missing_value_is_named(submit, tmp_path, name):
    run = submit('gpu', values={k: v for k, v in VALUES.items() if k != name})
    assert run.returncode != 0
    assert f'{name}: ' in run.stderr.splitlines()[-1]
    assert not (tmp_path / 'manifest').exists()


def test_a_wrong_kind_is_refused(submit, tmp_path):
    run = submit('cpu')
    assert (run.returncode, run.stderr) == (2, 'error: the first argument must be gpu or tpu\n')
    assert not (tmp_path / 'manifest').exists()


class Cluster(http.server.BaseHTTPRequestHandler):
    """The API of a cluster that runs one JobSet, for the rights of one role."""

    jobset: dict
    role: dict

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        job_name = 'run1-node-0'
        pods, jobs = '/api/v1/namespaces/vision/pods', '/apis/batch/v1/namespaces/vision/jobs/'
        labels = {'job-name': job_name, 'jobset.sigs.k8s.io/jobset-name': 'run1'}
        owner = {'apiVersion': 'batch/v1', 'kind': 'Job', 'name': job_name, 'uid': '1'}
        pod = {'name': f'{job_name}-2', 'labels': labels}
        pod['ownerReferences'] = [owner | {'controller': True}]
        spec = job_of(self.jobset)
        query = urllib.parse.parse_qs(url.query)
        if url.path == pods and query == {'fieldSelector': ['status.podIP=127.0.0.1']}:
            pod_spec = spec['template']['spec']
            self.answer('', 'pods', 'list', {'items': [{'metadata': pod, 'spec': pod_spec}]})
        elif url.path == jobs + job_name:
            metadata = {'name': job_name, 'labels': labels}
            self.answer('batch', 'jobs', 'get', {'metadata': metadata, 'spec': spec})
        else:
            self.send_error(404)

    def answer(self, group: str, resource: str, verb: str, content: dict) -> None:
        allowed = any(
            group in rule['apiGroups'] and resource in rule['resources'] and verb in rule['verbs']
            for rule in self.role['rules']
        )
        if not allowed:
            self.send_error(403)
            return
        self.send_response(200)
        self.send_header('Content-Type', 'application/json')
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture
def detect(jobset, monkeypatch):
    """What JAX finds in pod 2 of the JobSet, in a cluster that grants what the role says."""
    _, role, _ = yaml.safe_load_all((K8S / 'service_account.yaml').read_text())

    def run(role: dict = role) -> tuple:
        handler = type('Handler', (Cluster,), {'jobset': jobset('gpu'), 'role': role})
        with http.server.HTTPServer(('127.0.0.1', 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            host = kubernetes.client.Configuration(host=f'http://127.0.0.1:{server.server_port}')
            kubernetes.client.Configuration.set_default(host)
            try:
                return clusters.ClusterEnv.auto_detect_unset_distributed_params(
                    None, None, None, None, None, None
                )
            finally:
                server.shutdown()

    for name, value in (
        ('KUBERNETES_SERVICE_HOST', '127.0.0.1'),
        ('HOSTNAME', 'localhost'),
        ('JOB_COMPLETION_INDEX', '2'),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(kubernetes.config, 'load_incluster_config', lambda: None)
    cluster = k8s_cluster.K8sCluster
    monkeypatch.setattr(cluster, '_namespace', classmethod(lambda _: 'vision'))
    for cached in ('_pod', '_job', '_controller'):
        function = cluster.__dict__[cached].__func__.__wrapped__
        monkeypatch.setattr(cluster, cached, classmethod(function))
    monkeypatch.setattr(k8s_cluster.time, 'sleep', lambda seconds: None)
    yield run, role
    kubernetes.client.Configuration.set_default(None)


def test_jax_finds_the_processes_of_the_jobset(detect):
    run, _ = detect
    assert run() == ('run1-node-0-0.run1:55527', 3, 2, None)  # None: all GPUs of the node


@pytest.mark.parametrize('rule', [0, 1])
def test_the_role_grants_no_more_than_jax_needs(detect, rule):
    run, role = detect
    less = role | {'rules': [r for i, r in enumerate(role['rules']) if i != rule]}
    with pytest.raises(RuntimeError, match='403'):
        run(less)


def test_the_pods_run_as_the_account_that_the_role_is_bound_to(jobset):
    account, role, binding = yaml.safe_load_all((K8S / 'service_account.yaml').read_text())
    pod = job_of(jobset('gpu'))['template']['spec']
    assert pod['serviceAccountName'] == account['metadata']['name']
    assert binding['subjects'] == [{'kind': account['kind'], 'name': account['metadata']['name']}]
    assert binding['roleRef'] == {
        'apiGroup': role['apiVersion'].partition('/')[0],
        'kind': role['kind'],
        'name': role['metadata']['name'],
    }
    client = kubernetes.client.ApiClient()
    for manifest, model in ((account, 'V1ServiceAccount'), (role, 'V1Role')):
        parsed = client.deserialize(json.dumps(manifest), model, 'application/json')
        assert client.sanitize_for_serialization(parsed) == manifest
