-- Run once by PostgreSQL's image on an empty volume; the database `mlflow` it makes itself.
CREATE DATABASE mlflow_auth;
