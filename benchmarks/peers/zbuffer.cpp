// The native bound: a plain z-buffer loop, what one writes by hand in an afternoon.
//
// float32, one image a thread at a time, bounding box, three edge functions a pixel
// (inclusive, both orientations), perspective-correct depth, the smaller face index on
// a tie. The backward pass walks the pixels and adds into the three vertices of the
// visible face; images share nothing, so that it is deterministic.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

namespace {

struct Mesh {
  const int* faces;  // (count, 3)
  int count;
  void corners(int face, int out[3]) const {
    std::memcpy(out, faces + 3 * face, 3 * sizeof(int));
  }
};

struct Grid {  // the faces of rasterizer.grid_faces, without reading them
  int width, cells, count;
  Grid(int height, int width)
      : width(width), cells((height - 1) * (width - 1)), count(2 * cells) {}
  void corners(int face, int out[3]) const {
    const bool lower = face >= cells;
    const int cell = lower ? face - cells : face;
    const int top_left = cell + cell / (width - 1);
    out[0] = top_left + lower;
    out[1] = top_left + width;
    out[2] = lower ? top_left + width + 1 : top_left + 1;
  }
};

struct Image {
  int height, width;
  float background;
};

template <class Topology>
void draw(const Topology& mesh, const float* vertices, const Image& image,
          int* index, float* depth) {
  const int pixels = image.height * image.width;
  std::fill(index, index + pixels, -1);
  std::fill(depth, depth + pixels, std::numeric_limits<float>::infinity());
  for (int face = 0; face < mesh.count; ++face) {
    int id[3];
    mesh.corners(face, id);
    const float *a = vertices + 3 * id[0], *b = vertices + 3 * id[1],
                *c = vertices + 3 * id[2];
    if (!(a[2] > 0 && b[2] > 0 && c[2] > 0)) continue;
    const float area =
        (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]);
    if (!(area != 0)) continue;
    const float low_x = std::min({a[0], b[0], c[0]});
    const float high_x = std::max({a[0], b[0], c[0]});
    const float low_y = std::min({a[1], b[1], c[1]});
    const float high_y = std::max({a[1], b[1], c[1]});
    if (!(high_x >= 0 && high_y >= 0 && low_x <= image.width - 1 &&
          low_y <= image.height - 1))
      continue;
    const int first_x = low_x <= 0 ? 0 : int(std::ceil(low_x));
    const int first_y = low_y <= 0 ? 0 : int(std::ceil(low_y));
    const int last_x =
        high_x >= image.width - 1 ? image.width - 1 : int(std::floor(high_x));
    const int last_y =
        high_y >= image.height - 1 ? image.height - 1 : int(std::floor(high_y));
    const float scale = 1 / area;
    const float za = 1 / a[2], zb = 1 / b[2], zc = 1 / c[2];
    for (int y = first_y; y <= last_y; ++y)
      for (int x = first_x; x <= last_x; ++x) {
        const float ax = a[0] - x, ay = a[1] - y, bx = b[0] - x, by = b[1] - y,
                    cx = c[0] - x, cy = c[1] - y;
        const float wa = (bx * cy - by * cx) * scale;
        const float wb = (cx * ay - cy * ax) * scale;
        const float wc = (ax * by - ay * bx) * scale;
        if (wa < 0 || wb < 0 || wc < 0) continue;
        const float z = 1 / (wa * za + wb * zb + wc * zc);
        const int at = y * image.width + x;
        if (z < depth[at]) {
          depth[at] = z;
          index[at] = face;
        }
      }
  }
  for (int at = 0; at < pixels; ++at)
    if (index[at] < 0) depth[at] = image.background;
}

template <class Topology>
void pull_back(const Topology& mesh, const float* vertices, const Image& image,
               const int* index, const float* depth, const float* cotangent,
               float* gradient, int vertex_count) {
  std::fill(gradient, gradient + 3 * vertex_count, 0.0f);
  for (int y = 0; y < image.height; ++y)
    for (int x = 0; x < image.width; ++x) {
      const int at = y * image.width + x;
      if (index[at] < 0) continue;
      int id[3];
      mesh.corners(index[at], id);
      const float *a = vertices + 3 * id[0], *b = vertices + 3 * id[1],
                  *c = vertices + 3 * id[2];
      const float ax = a[0] - x, ay = a[1] - y, bx = b[0] - x, by = b[1] - y,
                  cx = c[0] - x, cy = c[1] - y;
      const float scale =
          1 / ((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]));
      const float weight[3] = {(bx * cy - by * cx) * scale,
                               (cx * ay - cy * ax) * scale,
                               (ax * by - ay * bx) * scale};
      const float inverse[3] = {1 / a[2], 1 / b[2], 1 / c[2]};
      const float rise1 = inverse[1] - inverse[0], rise2 = inverse[2] - inverse[0];
      const float slope_x =
          (rise1 * (c[1] - a[1]) - rise2 * (b[1] - a[1])) * scale;
      const float slope_y =
          (rise2 * (b[0] - a[0]) - rise1 * (c[0] - a[0])) * scale;
      const float pull = -cotangent[at] * depth[at] * depth[at];
      for (int k = 0; k < 3; ++k) {
        float* out = gradient + 3 * id[k];
        const float q = pull * weight[k];
        out[0] -= q * slope_x;
        out[1] -= q * slope_y;
        out[2] -= q * inverse[k] * inverse[k];
      }
    }
}

template <class Work>
void each_image(int batch, int threads, Work work) {
  std::atomic<int> next{0};
  auto run = [&] {
    for (int i; (i = next++) < batch;) work(i);
  };
  std::vector<std::thread> others;
  for (int t = 1; t < std::min(threads, batch); ++t) others.emplace_back(run);
  run();
  for (auto& other : others) other.join();
}

template <class Topology>
void render(const Topology& mesh, const float* vertices, int batch,
            int vertex_count, const Image& image, int* index, float* depth,
            const float* cotangent, float* gradient, int threads) {
  const int pixels = image.height * image.width;
  each_image(batch, threads, [&](int i) {
    const float* mine = vertices + 3ll * i * vertex_count;
    const long long at = 1ll * i * pixels;
    draw(mesh, mine, image, index + at, depth + at);
    if (gradient)
      pull_back(mesh, mine, image, index + at, depth + at, cotangent + at,
                gradient + 3ll * i * vertex_count, vertex_count);
  });
}

}  // namespace

// vertices (batch, vertex_count, 3); index, depth, cotangent (batch, height, width);
// gradient like vertices, or null for the forward pass alone.
extern "C" void render_mesh(const float* vertices, int batch, int vertex_count,
                            const int* faces, int face_count, int height,
                            int width, float background, int* index,
                            float* depth, const float* cotangent,
                            float* gradient, int threads) {
  render(Mesh{faces, face_count}, vertices, batch, vertex_count,
         Image{height, width, background}, index, depth, cotangent, gradient,
         threads);
}

extern "C" void render_grid(const float* vertices, int batch, int rows,
                            int columns, int height, int width,
                            float background, int* index, float* depth,
                            const float* cotangent, float* gradient,
                            int threads) {
  render(Grid(rows, columns), vertices, batch, rows * columns,
         Image{height, width, background}, index, depth, cotangent, gradient,
         threads);
}
