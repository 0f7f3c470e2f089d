-- MLflow's own database beside Prefect's, made on the first start of infra/compose.yaml.
CREATE DATABASE mlflow;
