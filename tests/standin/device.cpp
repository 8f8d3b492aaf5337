// A device for tests whose memory is the host's: torch's PrivateUse1, every op of it the CPU's.
//
// As on a GPU, an op that meets tensors of two devices is an error, and so is a backend that is
// asked for tensors of another device than its own: what a test gets wrong there is seen here.
// Kernels that are emulated or interpreted read its memory through data_ptr() as it is.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <string>
#include <unordered_map>
#include <vector>

namespace {

constexpr auto kKind = c10::DeviceType::PrivateUse1;
const c10::Device kDevice(kKind, 0);

struct Guard final : c10::impl::NoOpDeviceGuardImpl<kKind> {
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  c10::Stream getStream(c10::Device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, kDevice);
  }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return getStream(kDevice); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    return at::detail::createCPUGenerator();
  }
};

at::Tensor shaped(at::Tensor made, const at::Tensor& like) {
  made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(),
                                                    like.storage_offset());
  return made;
}

at::Tensor tensor_of(c10::Storage storage, c10::DispatchKey key, const at::Tensor& like) {
  return shaped(at::detail::make_tensor<c10::TensorImpl>(std::move(storage),
                                                         c10::DispatchKeySet(key), like.dtype()),
                like);
}

// With its base's keys, by which inference mode tells the two kinds of tensors apart.
at::Tensor view_of(const at::Tensor& base, const at::Tensor& like) {
  return shaped(
      at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(base.storage()),
                                               base.key_set(), like.dtype()),
      like);
}

// One call of an op: its tensors of this device as tensors of the CPU over the same memory.
class Call {
 public:
  explicit Call(const c10::OperatorHandle& op) : name_(op.operator_name().name) {}

  c10::IValue to_host(const c10::IValue& value) {
    if (value.isTensor()) return host(value.toTensor());
    if (value.isTensorList()) {
      c10::List<at::Tensor> out;
      for (const at::Tensor& one : value.toTensorVector()) out.push_back(host(one));
      return out;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> out;
      for (const auto& one : value.toOptionalTensorVector())
        out.push_back(one.has_value() ? std::optional(host(*one)) : std::nullopt);
      return out;
    }
    if (value.isDevice() && value.toDevice().type() == kKind) return c10::Device(c10::kCPU);
    return value;
  }

  // Index tensors may lie on the CPU, as on CUDA; a number of no dimensions always may.
  void check() const {
    const bool indexes = name_.find("index") != std::string::npos;
    TORCH_CHECK(pairs_.empty() || !elsewhere_ || indexes,
                "Expected all tensors to be on the same device, but found at least two devices, ",
                kDevice, " and cpu! (in ", name_, ")");
  }

  c10::IValue to_device(const c10::IValue& value) {
    if (value.isTensor()) return device(value.toTensor());
    if (value.isTensorList()) {
      c10::List<at::Tensor> out;
      for (const at::Tensor& one : value.toTensorVector()) out.push_back(device(one));
      return out;
    }
    return value;
  }

  // An op may have given its output more memory, or another shape.
  void write_back() {
    for (auto& [alias, original] : pairs_) {
      c10::StorageImpl* now = alias.storage().unsafeGetStorageImpl();
      c10::StorageImpl* before = original.storage().unsafeGetStorageImpl();
      if (now->data() != before->data()) {
        void* data = now->mutable_data();
        auto* kept = new c10::Storage(alias.storage());
        before->set_data_ptr_noswap(c10::DataPtr(data, kept, release, kDevice));
        before->set_nbytes(now->nbytes());
      }
      if (alias.sizes() != original.sizes() || alias.strides() != original.strides())
        original.unsafeGetTensorImpl()->set_sizes_and_strides(alias.sizes(), alias.strides(),
                                                              alias.storage_offset());
    }
  }

 private:
  static void release(void* kept) { delete static_cast<c10::Storage*>(kept); }

  at::Tensor host(const at::Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    if (tensor.device().type() != kKind) {
      elsewhere_ |= tensor.dim() > 0;
      return tensor;
    }
    c10::StorageImpl* original = tensor.storage().unsafeGetStorageImpl();
    auto found = storages_.find(original);
    if (found == storages_.end()) {
      c10::DataPtr data(original->mutable_data(), c10::Device(c10::kCPU));
      c10::Storage alias(c10::Storage::use_byte_size_t{}, original->nbytes(), std::move(data),
                         c10::GetAllocator(c10::kCPU), true);
      found = storages_.emplace(original, alias).first;
    }
    at::Tensor alias = tensor_of(found->second, c10::DispatchKey::CPU, tensor);
    pairs_.emplace_back(alias, tensor);
    return alias;
  }

  at::Tensor device(const at::Tensor& tensor) {
    if (!tensor.defined() || tensor.device().type() != c10::kCPU) return tensor;
    for (auto& [alias, original] : pairs_)
      if (alias.is_same(tensor)) return original;
    c10::StorageImpl* storage = tensor.storage().unsafeGetStorageImpl();
    for (auto& [alias, original] : pairs_)
      if (alias.storage().unsafeGetStorageImpl() == storage) return view_of(original, tensor);
    auto* kept = new c10::Storage(tensor.storage());
    c10::DataPtr data(storage->mutable_data(), kept, release, kDevice);
    c10::Storage made(c10::Storage::use_byte_size_t{}, storage->nbytes(), std::move(data),
                      c10::GetAllocator(c10::kCPU), true);
    return tensor_of(made, c10::DispatchKey::PrivateUse1, tensor);
  }

  std::string name_;
  bool elsewhere_ = false;
  std::vector<std::pair<at::Tensor, at::Tensor>> pairs_;
  std::unordered_map<c10::StorageImpl*, c10::Storage> storages_;
};

void on_the_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Call call(op);
  const auto& schema = op.schema();
  const auto begin = stack->end() - static_cast<std::ptrdiff_t>(schema.arguments().size());
  for (auto value = begin; value != stack->end(); ++value) *value = call.to_host(*value);
  call.check();
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  call.write_back();
  const auto results = stack->end() - static_cast<std::ptrdiff_t>(schema.returns().size());
  for (auto value = results; value != stack->end(); ++value) *value = call.to_device(*value);
}

// Copies are what may meet two devices.
at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  const auto host = [](const at::Tensor& tensor) {
    if (tensor.device().type() != kKind) return tensor;
    c10::StorageImpl* storage = tensor.storage().unsafeGetStorageImpl();
    c10::Storage alias(c10::Storage::use_byte_size_t{}, storage->nbytes(),
                       c10::DataPtr(storage->mutable_data(), c10::Device(c10::kCPU)));
    return tensor_of(alias, c10::DispatchKey::CPU, tensor);
  };
  host(to).copy_(host(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

// What changes a tensor's storage cannot be done to an alias of it.
at::Tensor& set(at::Tensor& tensor, c10::Storage source, int64_t offset, at::IntArrayRef sizes,
                at::IntArrayRef strides) {
  c10::TensorImpl* impl = tensor.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  if (strides.empty() && !sizes.empty()) {
    impl->set_storage_offset(offset);
    impl->set_sizes_contiguous(sizes);
  } else {
    impl->set_sizes_and_strides(sizes, strides, offset);
  }
  return tensor;
}

at::Tensor& set_storage(at::Tensor& tensor, c10::Storage source) {
  const auto count = static_cast<int64_t>(source.nbytes() / tensor.dtype().itemsize());
  return set(tensor, std::move(source), 0, count, {});
}

at::Tensor& set_tensor(at::Tensor& tensor, const at::Tensor& source) {
  return set(tensor, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&on_the_host>());
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("_copy_from", &copy_from);
  library.impl("_copy_from_and_resize", &copy_from_and_resize);
  library.impl("set_.source_Storage", &set_storage);
  library.impl("set_.source_Storage_storage_offset", &set);
  library.impl("set_.source_Tensor", &set_tensor);
}

}  // namespace

extern "C" void register_standin() {
  static Hooks hooks;
  at::RegisterPrivateUse1HooksInterface(&hooks);
}
