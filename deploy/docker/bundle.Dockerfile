# An image with its model in it. The context is the bundle, or a directory of NAME/VERSION/ bundles:
#   docker build -f deploy/docker/bundle.Dockerfile -t digits runs/digits/bundle-8bit
ARG SERVER_IMAGE=cpt-deploy
# hadolint ignore=DL3006
FROM ${SERVER_IMAGE}
COPY . /models/
